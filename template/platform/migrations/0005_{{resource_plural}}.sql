-- What customers keep here: the pattern for a table of one's own.
create table {{resource_plural}} (
  -- UUIDv7: in order of creation, which is also the order of the lists.
  id uuid primary key,
  owner_id uuid not null references users (id),
  name text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- The twin of `{{Resource}}Fields::validate` in src/{{resource_plural}}/model.rs.
  constraint {{resource}}_name_is_in_bounds check (char_length(name) between 1 and 200)
);

-- A page of one owner's is read from the index, however many others there are.
create index {{resource_plural}}_of_owner on {{resource_plural}} (owner_id, id desc);

-- No delete, and nobody gets another owner: what is not granted here, the service cannot do.
grant select, insert on {{resource_plural}} to app_runtime;
grant update (name, updated_at) on {{resource_plural}} to app_runtime;
