-- Reconciliation with the gateway: the gateway's listing of charges and refunds is compared with payments and refunds.
--
-- The progress is a row and not the memory of a process. So one replica at a time reads the listing, another one
-- continues after a crash, and a shutdown interrupts a run after any page. The row is a lease and not an advisory lock,
-- because a lock would need an open transaction during the calls of the gateway.
--
-- The row is restored with the rest of the database. A run begins before the latest complete run, so after a restore
-- it covers the lost time.
create table reconciliations (
  -- `recent`: the newest minutes, every interval. `window`: two days, every hour.
  scope text primary key,
  due_at timestamptz not null default now(),
  -- The replica that reads the listing. It renews the lease with every page.
  lease_holder uuid,
  lease_expires_at timestamptz,
  -- The run in progress; all null if there is none.
  started_at timestamptz,
  since timestamptz,
  step text,
  -- Position within the step; null at its beginning.
  position text,
  pages integer not null default 0,
  -- When the latest complete run began.
  completed_through timestamptz,
  constraint scope_is_known check (scope in ('recent', 'window')),
  constraint step_is_known check (step in ('charges', 'refunds', 'unlisted_payments', 'unlisted_refunds')),
  constraint a_run_has_a_beginning check (
    (started_at is null) = (since is null) and (started_at is null) = (step is null)
  )
);

insert into reconciliations (scope) values ('recent'), ('window');

-- Set once the gateway has listed the charge or refund that settled the record. A record that took money and stays
-- unlisted has no counterpart at the gateway.
alter table payments add column listed_at timestamptz;
alter table refunds add column listed_at timestamptz;

grant select on reconciliations to app_runtime;
grant update (
  due_at, lease_holder, lease_expires_at, started_at, since, step, position, pages, completed_through
) on reconciliations to app_runtime;
grant update (listed_at) on payments to app_runtime;
grant update (listed_at) on refunds to app_runtime;
