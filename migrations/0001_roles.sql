-- Database roles and their privileges.
--
-- Two roles share this database. The owner only runs `migrate`. The service connects with its own login role, a member
-- of `app_runtime`. That role has only the privileges that the following migrations grant, by table and, where
-- necessary, by column. It cannot change the schema, an order's total, or the audit log. A vulnerability of the service
-- therefore cannot change the ledger.
--
-- Roles belong to the cluster and not to the database. The role may therefore exist already, or another database's
-- migration may create it at the same time.
do $$
begin
  create role app_runtime nologin;
exception
  when duplicate_object or unique_violation then null;
end
$$;

-- By default, every role of the cluster may use the objects that are created here.
revoke all on schema public from public;
grant usage on schema public to app_runtime;

-- By default, every role may execute a new function. Here each function is granted to the roles that call it, in the
-- migration that creates it. Trigger functions need no grant. A role that may execute one could use it as a trigger of
-- its own temporary table.
alter default privileges revoke execute on functions from public;

-- Readiness compares this table with the migrations in the binary.
grant select on _sqlx_migrations to app_runtime;
