-- Idempotency keys (draft-ietf-httpapi-idempotency-key-header): what was asked under a key, and what was
-- answered.
--
-- The row is written in the transaction of the change that it stands for. So it is there if and only if the
-- change is, and a concurrent twin waits on this primary key until the first has committed.
--
-- A change of one transaction (an order) stores its answer at once. A change that takes two with a foreign
-- call of another service between them is stored with the resource that it made and without an answer;
-- whoever settles that resource stores the answer in the settling transaction.
create table idempotency_keys (
  -- The caller's id, or `gateway` for the webhooks that were received.
  scope text not null,
  key text not null,
  -- SHA-256 of method, path and body: the same key with another request is a mistake of the client.
  fingerprint bytea not null,
  resource_id uuid,
  -- Until then the first caller is still being answered.
  lease_expires_at timestamptz,
  response_status smallint,
  response_body text,
  created_at timestamptz not null default now(),
  completed_at timestamptz,
  primary key (scope, key),
  -- The length by itself: to count to 255 within the pattern costs 35 µs for each key.
  constraint key_is_visible_ascii check (key !~ '[^!-~]' and length(key) between 1 and 255),
  constraint fingerprint_is_a_sha256 check (octet_length(fingerprint) = 32),
  -- A refusal leaves no key behind: the caller may repair the request and use the key again.
  constraint only_success_is_stored check (response_status between 200 and 299),
  constraint a_completed_key_has_its_answer check (
    (completed_at is null) = (response_status is null) and (completed_at is null) = (response_body is null)
  )
);

create index idempotency_keys_under_way on idempotency_keys (resource_id) where completed_at is null;
create index idempotency_keys_by_completion on idempotency_keys (completed_at) where completed_at is not null;

-- Claims a key; false if somebody else has it. Waits while somebody else is claiming it.
create function claim_idempotency_key(
  scope text, key text, fingerprint bytea, resource_id uuid, lease interval, response_status integer, response_body text
) returns boolean
language plpgsql
set search_path = public, pg_temp
set timezone = 'UTC'
as $$
begin
  insert into idempotency_keys (
    scope, key, fingerprint, resource_id, lease_expires_at, response_status, response_body, completed_at
  )
  values (
    $1, $2, $3, $4, now() + $5, $6, $7, case when $6 is not null then now() end
  )
  on conflict do nothing;
  return found;
end
$$;

grant select, insert, delete on idempotency_keys to app_runtime;
grant update (lease_expires_at, response_status, response_body, completed_at) on idempotency_keys to app_runtime;
grant execute on function claim_idempotency_key(text, text, bytea, uuid, interval, integer, text) to app_runtime;
