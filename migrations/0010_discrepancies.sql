-- Discrepancies: what the gateway reports does not fit what is stored, or an outcome stays unknown for too long.
--
-- Recovery finds the same discrepancy again every few seconds, so each is stored, audited and alerted once. The
-- alert is sent from this table until a receiver has accepted it: neither a crash after the commit nor a receiver
-- that is down loses one. A discrepancy stays open until a person closes it with a reason.
--
-- A table rather than columns of payments and refunds, because the gateway may report something that is neither.
create table discrepancies (
  id uuid primary key,
  -- `payments` or `refunds`.
  resource text not null,
  -- The payment or refund, or the gateway's reference where no such record exists. Null if there is no usable
  -- reference.
  record_id uuid,
  what text not null,
  gateway_says text not null,
  we_say text not null,
  -- Of the resource, the record, what does not fit, and what the gateway reports: another amount is another
  -- discrepancy.
  digest bytea not null,
  correlation_id text,
  recorded_at timestamptz not null default now(),
  -- When the alert is sent next. Null once a receiver has accepted it.
  alert_due_at timestamptz default now(),
  closed_at timestamptz,
  closed_reason text,
  constraint a_discrepancy_is_recorded_once unique (digest),
  constraint digest_is_sha256 check (octet_length(digest) = 32),
  constraint a_closed_discrepancy_has_a_reason check ((closed_at is null) = (closed_reason is null))
);

create index discrepancies_open on discrepancies (record_id) where closed_at is null;
create index discrepancies_to_alert on discrepancies (alert_due_at) where alert_due_at is not null;

-- No delete and no other update: what was found stays found.
grant select, insert on discrepancies to app_runtime;
grant update (alert_due_at, closed_at, closed_reason) on discrepancies to app_runtime;
