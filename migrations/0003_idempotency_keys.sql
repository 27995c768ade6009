-- Idempotency keys (draft-ietf-httpapi-idempotency-key-header): the request and the response of each key.
--
-- The row is written in the transaction of the change that it belongs to. The row therefore exists if and only if the
-- change does. A concurrent duplicate waits on this primary key until the first request has committed.
--
-- A change of one transaction (an order) stores its response at once. A change of two transactions, with a call to
-- another service between them, is stored with its resource and without a response. The transaction that settles the
-- resource stores the response.
create table idempotency_keys (
  -- The caller's id, or `gateway` for received webhooks.
  scope text not null,
  key text not null,
  -- SHA-256 of method, path and body. The same key with another request is an error of the client.
  fingerprint bytea not null,
  resource_id uuid,
  -- Until this time, the first request is still being processed.
  lease_expires_at timestamptz,
  response_status smallint,
  response_body text,
  created_at timestamptz not null default now(),
  completed_at timestamptz,
  primary key (scope, key),
  -- The length is checked separately, because counting to 255 within the pattern takes 35 µs for each key.
  constraint key_is_visible_ascii check (key !~ '[^!-~]' and length(key) between 1 and 255),
  constraint fingerprint_is_a_sha256 check (octet_length(fingerprint) = 32),
  -- A refused request stores no key: the client may correct the request and use the key again.
  constraint only_success_is_stored check (response_status between 200 and 299),
  constraint a_completed_key_has_its_answer check (
    (completed_at is null) = (response_status is null) and (completed_at is null) = (response_body is null)
  )
);

create index idempotency_keys_under_way on idempotency_keys (resource_id) where completed_at is null;
create index idempotency_keys_by_completion on idempotency_keys (completed_at) where completed_at is not null;

-- Claims a key. Returns false if the key is taken. Waits while another transaction is claiming it.
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
