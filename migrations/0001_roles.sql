-- Who may do what.
--
-- Two roles share this database. The owner runs `migrate` and nothing else. The service connects as a login
-- of its own which is a member of `app_runtime`, and can do only what the following migrations grant to it,
-- table by table and, where it matters, column by column: it cannot change the schema, rewrite an order's
-- total, or touch the audit trail. A hole in the service is then not a hole in the books.
--
-- Roles belong to the cluster and not to the database, so this one may exist already, and another database's
-- migration may be creating it at this very moment.
do $$
begin
  create role app_runtime nologin;
exception
  when duplicate_object or unique_violation then null;
end
$$;

-- The default lets every role of the cluster use what is created here.
revoke all on schema public from public;
grant usage on schema public to app_runtime;

-- Every role may execute a new function by default. Here each function is granted to the roles that call it, in the
-- migration that creates it. Trigger functions need no grant: whoever can execute one could use it as a trigger of
-- their own temporary table.
alter default privileges revoke execute on functions from public;

-- Readiness compares this with the migrations in the binary.
grant select on _sqlx_migrations to app_runtime;
