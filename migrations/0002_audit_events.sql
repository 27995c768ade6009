-- The audit log: who did what, when, to which resource, from where, and with which result (NIST SP 800-53 AU-3).
--
-- The log is append-only, and a vulnerability of the service must not change that. The service's role may insert some
-- columns and read. Triggers reject every other change by every role, including the owner. The database fills in the
-- columns for an event's position in time (`recorded_at`, `sequence`, `xact_id`). They cannot be inserted, so no event
-- can be backdated.
--
-- The table is partitioned by month, so that old events are removed as whole tables, never by DELETE.
create sequence audit_event_sequence;

create table audit_events (
  id uuid not null,
  -- The service's clock; `recorded_at` has the database's clock.
  "timestamp" timestamptz not null,
  event_type text not null,
  -- No foreign key, because an event outlives the user that it refers to.
  user_id uuid,
  role text,
  resource text not null,
  action text not null,
  result text not null,
  ip_address inet,
  metadata jsonb not null default '{}',
  correlation_id text,
  request_id uuid,
  trace_id text,
  service_version text not null,
  recorded_at timestamptz not null default now(),
  sequence bigint not null default nextval('audit_event_sequence'),
  -- Not the system column xmin, which has only 32 bits and is frozen by VACUUM.
  xact_id xid8 not null default pg_current_xact_id(),
  primary key (recorded_at, id),
  constraint event_type_is_known check (
    event_type in ('authentication', 'authorization', 'data_access', 'data_change', 'configuration', 'audit')
  ),
  constraint result_is_known check (result in ('success', 'failure', 'denied')),
  constraint metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
) partition by range (recorded_at);

create function refuse_audit_change() returns trigger
language plpgsql
set search_path = public, pg_temp
as $$
begin
  raise exception 'the audit log is append-only: % is rejected', tg_op
    using errcode = 'insufficient_privilege';
end
$$;

create trigger audit_events_are_never_changed
  before update or delete on audit_events
  for each row execute function refuse_audit_change();

create trigger audit_events_are_never_truncated
  before truncate on audit_events
  for each statement execute function refuse_audit_change();

-- Takes events that no month's partition takes. A row here means that partitions were not created in time.
create table audit_events_default partition of audit_events default;

-- TRUNCATE of a partition does not fire the parent's trigger, so each partition has its own.
create trigger audit_events_are_never_truncated
  before truncate on audit_events_default
  for each statement execute function refuse_audit_change();

-- Creates the missing partitions of this month and the next three. Returns how many it created.
--
-- The function runs with the rights of its owner, because the service's role cannot create tables. Without new
-- partitions, audited writes would go to the default partition when a month begins. The fixed search_path keeps a
-- caller from substituting its own objects. The time zone makes months begin at midnight UTC in every session.
--
-- Each partition is created as a separate table and then attached. CREATE TABLE … PARTITION OF would lock the parent in
-- ACCESS EXCLUSIVE mode: behind one long reader, such as pg_dump, every audited write would wait. ATTACH takes SHARE
-- UPDATE EXCLUSIVE on the parent, which does not block writers. ATTACH also takes ACCESS EXCLUSIVE on the default
-- partition, which only readers of the whole log use. Those readers wait for at most lock_timeout; then this function
-- fails, and its caller retries. The timeout is shorter than deadlock_timeout (1 s), so that this function gives way in
-- a deadlock.
create function make_audit_partitions() returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set lock_timeout = '500ms'
as $$
declare
  month timestamptz;
  partition_name text;
  made integer := 0;
begin
  for month in
    select generate_series(
      date_trunc('month', now()), date_trunc('month', now()) + interval '3 months', interval '1 month'
    )
  loop
    partition_name := 'audit_events_' || to_char(month, 'YYYY_MM');
    continue when to_regclass('public.' || partition_name) is not null;
    -- Another replica may be creating the same partition.
    perform pg_advisory_xact_lock(hashtext('public.make_audit_partitions'));
    continue when to_regclass('public.' || partition_name) is not null;
    begin
      execute format('create table public.%I (like public.audit_events including all)', partition_name);
      -- TRUNCATE of a partition does not fire the parent's trigger. ATTACH adds the triggers for rows.
      execute format(
        'create trigger audit_events_are_never_truncated before truncate on public.%I
           for each statement execute function public.refuse_audit_change()',
        partition_name
      );
      execute format(
        'alter table public.audit_events attach partition public.%I for values from (%L) to (%L)',
        partition_name, month, month + interval '1 month'
      );
      made := made + 1;
    exception
      -- The default partition has events of this month. The other months are not held up by that.
      when check_violation then
        raise warning 'partition % was not created: its events are in audit_events_default', partition_name;
    end;
  end loop;
  return made;
end
$$;

select make_audit_partitions();

-- The log is read newest first: completely (by the primary key), or by user, resource or type.
create index audit_events_by_user on audit_events (user_id, recorded_at desc, id desc);
create index audit_events_by_resource on audit_events (resource, recorded_at desc, id desc);
create index audit_events_by_type on audit_events (event_type, recorded_at desc, id desc);

-- Records one event. Statements of all modules call it, so that a change and its audit event are committed together or
-- not at all. The event is one JSON object with the columns' names.
--
-- The function is PL/pgSQL rather than SQL, because PL/pgSQL caches the plan of its statement between calls.
create function record_audit_event(event jsonb) returns void
language plpgsql
set search_path = public, pg_temp
set timezone = 'UTC'
as $$
begin
  insert into audit_events (
    id, "timestamp", event_type, user_id, role, resource, action, result,
    ip_address, metadata, correlation_id, request_id, trace_id, service_version
  )
  values (
    (event ->> 'id')::uuid,
    (event ->> 'timestamp')::timestamptz,
    event ->> 'event_type',
    (event ->> 'user_id')::uuid,
    event ->> 'role',
    event ->> 'resource',
    event ->> 'action',
    event ->> 'result',
    (event ->> 'ip_address')::inet,
    event -> 'metadata',
    event ->> 'correlation_id',
    (event ->> 'request_id')::uuid,
    event ->> 'trace_id',
    event ->> 'service_version'
  );
end
$$;

grant select on audit_events to app_runtime;
grant insert (
  id, "timestamp", event_type, user_id, role, resource, action, result,
  ip_address, metadata, correlation_id, request_id, trace_id, service_version
) on audit_events to app_runtime;
grant usage on sequence audit_event_sequence to app_runtime;

grant execute on function record_audit_event(jsonb), make_audit_partitions() to app_runtime;
