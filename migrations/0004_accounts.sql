-- Users, their sessions, and login attempts.
create table users (
  id uuid primary key,
  -- Stored in lower case, so that no two users have addresses that differ only in case.
  email text not null,
  name text not null,
  -- A PHC string (argon2id). It contains its own parameters, so that the parameters can be raised later.
  password_hash text not null,
  role text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint email_is_taken_once unique (email),
  constraint email_is_lower_case check (email = lower(email)),
  constraint role_is_known check (role in ('customer', 'support', 'auditor', 'admin'))
);

create table sessions (
  id uuid primary key,
  user_id uuid not null references users (id) on delete cascade,
  -- SHA-256 of the token. The token has 256 random bits, so it needs neither a salt nor a slow hash. A copy of this
  -- table does not grant access to any session.
  token_hash bytea not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  constraint token_is_used_once unique (token_hash),
  constraint session_ends_after_it_begins check (expires_at > created_at)
);

create index sessions_by_user on sessions (user_id);
create index sessions_by_expiry on sessions (expires_at);

-- Failed logins (NIST SP 800-53 AC-7), counted before the password is verified. They are counted for an account from
-- one address (IPv6: one network of 64 bits), and for the account alone (`*`). The ceiling for the account alone is
-- higher, so that an attacker's failed attempts do not lock the owner out. Unknown accounts are counted like known ones,
-- because a difference would reveal which accounts exist. `account` is therefore not a foreign key but a keyed hash of
-- the e-mail address, the same as in the audit log (`pseudonym_key`).
create table login_attempts (
  account bytea not null,
  address text not null,
  attempts integer not null,
  expires_at timestamptz not null,
  primary key (account, address),
  constraint attempts_are_counted_from_one check (attempts >= 1)
);

create index login_attempts_by_expiry on login_attempts (expires_at);

grant select, insert on users to app_runtime;
grant update (password_hash, updated_at) on users to app_runtime;
grant select, insert, delete on sessions to app_runtime;
grant select, insert, update, delete on login_attempts to app_runtime;
