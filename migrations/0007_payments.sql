-- Payments and refunds: the requests to the payment gateway, and their certain outcomes.
--
-- A payment is stored as `processing` before the gateway is called, and leaves that status only by a certain outcome.
-- `gateway_key` is its idempotency key and its reference at the gateway. The key is derived from data that the client
-- repeats (src/slices/payments/gateway_key.rs), so a retry charges once even if this table has lost the row.
create table payments (
  id uuid primary key,
  order_id uuid not null,
  gateway_key uuid not null,
  status text not null default 'processing',
  amount bigint not null,
  currency text not null,
  refunded_amount bigint not null default 0,
  -- Succeeded and open refunds. The refundable amount is `amount - refund_reserved_amount`.
  refund_reserved_amount bigint not null default 0,
  failure_reason text,
  -- The exact bytes of every send, because the gateway rejects another body under the same key.
  gateway_request text not null,
  gateway_charge_id text,
  -- Number of sends of the charge that may have reached the gateway. Each is counted and committed before the send. It
  -- is subtracted only if nothing was sent. A rejection means "never charged" only if this number is 1.
  attempts integer not null default 1,
  first_sent_at timestamptz not null default now(),
  -- Only the holder of the lease calls the gateway; after its expiry, recovery takes over. The lease distributes the
  -- work. Payments are charged once even without it.
  lease_expires_at timestamptz,
  -- Set when the outcome was unknown for too long and an operator must review the payment. Polling continues more
  -- slowly.
  parked_at timestamptz,
  -- The context of the request that began the payment, so that recovery and webhooks can be traced back to the request.
  correlation_id text not null,
  trace_parent text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  settled_at timestamptz,
  -- The amount and currency of a payment always equal those of its order.
  constraint payment_agrees_with_its_order foreign key (order_id, amount, currency)
    references orders (id, total_amount, currency),
  constraint a_gateway_key_makes_one_payment unique (gateway_key),
  constraint a_charge_settles_one_payment unique (gateway_charge_id),
  constraint payment_status_is_known check (
    status in ('processing', 'succeeded', 'declined', 'failed', 'partially_refunded', 'refunded')
  ),
  constraint refunds_never_exceed_the_payment check (
    0 <= refunded_amount and refunded_amount <= refund_reserved_amount and refund_reserved_amount <= amount
  ),
  constraint only_money_taken_is_given_back check (
    refund_reserved_amount = 0 or status in ('succeeded', 'partially_refunded', 'refunded')
  ),
  constraint refund_status_follows_the_amount check (
    case status
      when 'refunded' then refunded_amount = amount
      when 'partially_refunded' then refunded_amount > 0 and refunded_amount < amount
      else refunded_amount = 0
    end
  ),
  constraint money_taken_has_a_charge check (
    status in ('processing', 'declined', 'failed') or gateway_charge_id is not null
  ),
  constraint a_refusal_has_a_reason check ((status in ('declined', 'failed')) = (failure_reason is not null)),
  constraint a_settled_payment_says_when check ((status = 'processing') = (settled_at is null)),
  constraint attempts_are_counted check (attempts >= 0)
);

create unique index one_live_payment_per_order on payments (order_id) where status not in ('declined', 'failed');
create index payments_of_order on payments (order_id);
create index payments_processing on payments (lease_expires_at) where status = 'processing';

-- Deferred, because the order references the payment in the statement that inserts the payment.
alter table orders
  add constraint live_payment_exists foreign key (live_payment_id) references payments (id)
  deferrable initially deferred;

create table refunds (
  id uuid primary key,
  payment_id uuid not null references payments (id),
  gateway_key uuid not null,
  status text not null default 'processing',
  amount bigint not null,
  reason text,
  failure_reason text,
  gateway_request text not null,
  gateway_refund_id text,
  attempts integer not null default 1,
  first_sent_at timestamptz not null default now(),
  lease_expires_at timestamptz,
  parked_at timestamptz,
  correlation_id text not null,
  trace_parent text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  settled_at timestamptz,
  constraint a_gateway_key_makes_one_refund unique (gateway_key),
  constraint a_gateway_refund_settles_one_refund unique (gateway_refund_id),
  constraint refund_status_is_known check (status in ('processing', 'succeeded', 'failed')),
  constraint refund_amount_is_positive check (amount > 0),
  constraint a_settled_refund_says_when check ((status = 'processing') = (settled_at is null)),
  constraint a_failed_refund_has_a_reason check ((status = 'failed') = (failure_reason is not null)),
  constraint money_given_back_has_a_refund check (status <> 'succeeded' or gateway_refund_id is not null),
  constraint refund_attempts_are_counted check (attempts >= 0)
);

create index refunds_of_payment on refunds (payment_id);
create index refunds_processing on refunds (lease_expires_at) where status = 'processing';

-- Mirrors `PaymentStatus::may_become` in src/slices/payments/model/mod.rs.
create function check_payment_status() returns trigger
language plpgsql
set search_path = public, pg_temp
as $$
begin
  if (old.status, new.status) in (
    ('processing', 'succeeded'),
    ('processing', 'declined'),
    ('processing', 'failed'),
    ('succeeded', 'partially_refunded'),
    ('succeeded', 'refunded'),
    ('partially_refunded', 'refunded')
  ) then
    return new;
  end if;
  raise exception 'a payment cannot change from % to %', old.status, new.status
    using errcode = 'check_violation', constraint = 'payment_status_moves_forward';
end
$$;

create trigger payment_status_moves_forward
  before update of status on payments
  for each row when (old.status <> new.status)
  execute function check_payment_status();

create function check_refund_status() returns trigger
language plpgsql
set search_path = public, pg_temp
as $$
begin
  if old.status = 'processing' then
    return new;
  end if;
  raise exception 'a refund cannot change from % to %', old.status, new.status
    using errcode = 'check_violation', constraint = 'refund_status_moves_forward';
end
$$;

create trigger refund_status_moves_forward
  before update of status on refunds
  for each row when (old.status <> new.status)
  execute function check_refund_status();

-- Amounts, requests and references cannot be updated, and rows cannot be deleted.
grant select, insert on payments to app_runtime;
grant update (
  status, refunded_amount, refund_reserved_amount, failure_reason, gateway_charge_id, attempts,
  lease_expires_at, parked_at, updated_at, settled_at
) on payments to app_runtime;
grant select, insert on refunds to app_runtime;
grant update (
  status, failure_reason, gateway_refund_id, attempts, lease_expires_at, parked_at, updated_at, settled_at
) on refunds to app_runtime;
