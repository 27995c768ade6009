-- Notes of customers: the pattern for a table of your own.
create table notes (
  -- UUIDv7: sorts by creation, which is also the order of the lists.
  id uuid primary key,
  owner_id uuid not null references users (id),
  name text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Mirrors `NoteFields::validate` in src/slices/notes/model.rs.
  constraint note_name_is_in_bounds check (char_length(name) between 1 and 200)
);

-- A page of one owner's notes is read from the index, however many other notes there are.
create index notes_of_owner on notes (owner_id, id desc);

-- The service cannot delete a note or change its owner, because neither right is granted.
grant select, insert on notes to app_runtime;
grant update (name, updated_at) on notes to app_runtime;
