-- Discrepancies: the gateway's report differs from the stored record, or an outcome stays unknown for too long.
--
-- Recovery finds the same discrepancy again every few seconds, so each is stored, audited and alerted once. The alert
-- is sent from this table until a receiver has accepted it. Neither a crash after the commit nor a receiver that is
-- down loses an alert. A discrepancy stays open until an operator closes it with a reason.
--
-- It is a table rather than columns of payments and refunds, because the gateway may report an object that is neither.
create table discrepancies (
  id uuid primary key,
  -- `payments` or `refunds`.
  resource text not null,
  -- The id of the payment or refund, or the gateway's reference if no such record exists. Null without a usable
  -- reference.
  record_id uuid,
  what text not null,
  gateway_says text not null,
  we_say text not null,
  -- Digest of the resource, the record, the kind of difference and the gateway's report. Another amount is another
  -- discrepancy.
  digest bytea not null,
  correlation_id text,
  recorded_at timestamptz not null default now(),
  -- Time at which the alert is sent next. Null once a receiver has accepted it.
  alert_due_at timestamptz default now(),
  closed_at timestamptz,
  closed_reason text,
  constraint a_discrepancy_is_recorded_once unique (digest),
  constraint digest_is_sha256 check (octet_length(digest) = 32),
  constraint a_closed_discrepancy_has_a_reason check ((closed_at is null) = (closed_reason is null))
);

create index discrepancies_open on discrepancies (record_id) where closed_at is null;
create index discrepancies_to_alert on discrepancies (alert_due_at) where alert_due_at is not null;

-- Rows cannot be deleted, and no other column can be updated.
grant select, insert on discrepancies to app_runtime;
grant update (alert_due_at, closed_at, closed_reason) on discrepancies to app_runtime;
