-- Seals: what makes it evident that the trail was changed, even by those whom no right and no trigger stops.
--
-- One worker among all replicas takes the events that nobody can add to any more, in batches, and writes a seal
-- over each batch: the digest of every event, and a hash over these, over the range, and over the hash of the
-- seal before. Whoever changes, removes or slips in an event has to make every later seal anew; and the newest
-- hashes stand in the log, outside of this database. docs/audit.md has the canonical form and a test vector.
--
-- An event's place is (epoch, xact_id, sequence). Transaction ids only grow within a cluster, and begin anew in
-- another one that a dump was loaded into; `migrate` sees that by the cluster's identifier, and begins an epoch.
create table audit_epochs (
  epoch integer primary key,
  system_identifier bigint not null,
  began_at timestamptz not null default now()
);

insert into audit_epochs (epoch, system_identifier)
select 1, system_identifier from pg_control_system();

-- Like the other columns of an event's place, it is not among those that the service may fill in.
alter table audit_events add column epoch integer not null default 1;

create index audit_events_by_place on audit_events (epoch, xact_id, sequence);

-- What is hashed must be readable in one way only, by any language: whole numbers that a double holds, no null
-- (what is not there is left out), and no more depth than anybody needs. One event that cannot be read would
-- stop the sealing of all.
--
-- In a function, because PostgreSQL prepares the expression of a constraint for every statement, which costs 8 µs
-- for this one, and PL/pgSQL once. The schema is named, because the caller's search_path is not to be trusted.
create function metadata_has_one_form(metadata jsonb) returns boolean
language plpgsql
immutable
as $$
begin
  return not pg_catalog.jsonb_path_exists(metadata, '$.**{4 to last}')
    and not pg_catalog.jsonb_path_exists(metadata, '$.** ? (@.type() == "null")')
    and not pg_catalog.jsonb_path_exists(
      metadata,
      '$.** ? (@.type() == "number" && (@ != @.floor() || @ > 9007199254740991 || @ < -9007199254740991))'
    );
end
$$;

alter table audit_events
  add constraint metadata_has_one_form check (metadata_has_one_form(metadata)),
  add constraint timestamp_has_four_digits_of_year check (
    "timestamp" >= '2000-01-01 00:00:00+00' and "timestamp" < '10000-01-01 00:00:00+00'
  );

-- A seal covers every event after the place where the one before ends, up to its own last place: so there is no
-- gap to put an event into. Transaction ids are plain numbers here; nothing compares them with the present.
create table audit_seals (
  number bigint not null,
  epoch integer not null,
  first_xact_id bigint not null,
  first_sequence bigint not null,
  last_xact_id bigint not null,
  last_sequence bigint not null,
  event_count integer not null,
  -- SHA-256 of each event, in order: they tell which event does not fit, and let a partition leave.
  digests bytea not null,
  sealed_at timestamptz not null,
  previous_hash bytea not null,
  hash bytea not null,
  primary key (number),
  -- A chain and not a tree, whatever two sealers do at once.
  constraint seal_is_followed_once unique (previous_hash),
  constraint seals_are_counted_from_one check (number >= 1),
  constraint seal_has_events check (event_count >= 1),
  constraint seal_has_a_digest_of_each_event check (octet_length(digests) = 32 * event_count),
  constraint hash_is_a_sha256 check (octet_length(hash) = 32 and octet_length(previous_hash) = 32)
);

create trigger audit_seals_are_never_changed
  before update or delete on audit_seals
  for each row execute function refuse_audit_change();

create trigger audit_seals_are_never_truncated
  before truncate on audit_seals
  for each statement execute function refuse_audit_change();

-- Where the chain ends. Without it, a missing last seal would look like one that is not made yet.
create table audit_seal_head (
  there_is_one boolean primary key default true,
  number bigint not null,
  hash bytea not null,
  constraint there_is_only_one check (there_is_one)
);

insert into audit_seal_head (number, hash) values (0, decode(repeat('00', 32), 'hex'));

-- With its owner's rights: the service may add a seal to the end of the chain, and move the end in no other way.
create function continue_audit_chain() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update public.audit_seal_head
  set number = new.number, hash = new.hash
  where number = new.number - 1 and hash = new.previous_hash;
  if not found then
    raise exception 'seal % does not continue the chain', new.number
      using errcode = 'integrity_constraint_violation', constraint = 'seals_continue_the_chain';
  end if;
  return null;
end
$$;

create trigger seals_continue_the_chain
  after insert on audit_seals
  for each row execute function continue_audit_chain();

-- Begins an epoch if this is another cluster than that of the last one; says which, or null. The lock that the
-- default takes waits for everybody who is writing, so nothing is added to an epoch after its end.
create function begin_audit_epoch(event jsonb) returns integer
language plpgsql
as $$
declare
  cluster bigint := (select system_identifier from pg_control_system());
  latest audit_epochs;
begin
  select * into strict latest from audit_epochs order by epoch desc limit 1;
  if latest.system_identifier = cluster then
    return null;
  end if;
  execute format('alter table audit_events alter column epoch set default %s', latest.epoch + 1);
  insert into audit_epochs (epoch, system_identifier) values (latest.epoch + 1, cluster);
  perform record_audit_event(event);
  return latest.epoch + 1;
end
$$;

-- The default partition cannot be asked by the service, which has no rights on partitions.
create function audit_default_partition_is_used() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from public.audit_events_default)
$$;

-- Drops the partitions of the months that ended before a time and whose every event stands at or before a place,
-- the last one that is exported; says which. For the owner, by `audit export`.
create function drop_exported_audit_partitions(ended_before timestamptz, epoch integer, xact_id xid8, sequence bigint)
returns setof text
language plpgsql
as $$
declare
  partition_name text;
  month timestamptz;
  has_others boolean;
begin
  lock table audit_events in access exclusive mode;
  for partition_name in
    select child.relname
    from pg_inherits
    join pg_class as child on child.oid = pg_inherits.inhrelid
    where pg_inherits.inhparent = 'audit_events'::regclass and child.relname ~ '^audit_events_\d{4}_\d{2}$'
    order by child.relname
  loop
    month := to_date(right(partition_name, 7), 'YYYY_MM')::timestamp at time zone 'UTC';
    continue when (month at time zone 'UTC' + interval '1 month') at time zone 'UTC' > ended_before;
    execute format(
      'select exists (select from %I as event where (event.epoch, event.xact_id, event.sequence) > ($1, $2, $3))',
      partition_name
    ) into has_others using $2, $3, $4;
    if not has_others then
      execute format('alter table audit_events detach partition %I', partition_name);
      execute format('drop table %I', partition_name);
      return next partition_name;
    end if;
  end loop;
end
$$;

grant select on audit_epochs, audit_seal_head to app_runtime;
grant select, insert on audit_seals to app_runtime;

revoke execute on function audit_default_partition_is_used() from public;
grant execute on function audit_default_partition_is_used() to app_runtime;
revoke execute on function begin_audit_epoch(jsonb) from public;
revoke execute on function drop_exported_audit_partitions(timestamptz, integer, xid8, bigint) from public;
