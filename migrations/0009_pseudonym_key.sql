-- Users who log in as nobody that exists often mistyped their own e-mail address, or put their password into the
-- wrong field. So the audit log and `login_attempts` have a keyed hash in its place: attempts for the same account
-- still belong together, and a copy of either alone does not show what was typed.
create table pseudonym_key (
  there_is_one boolean primary key default true,
  key bytea not null,
  constraint there_is_only_one check (there_is_one),
  constraint key_has_256_bits check (octet_length(key) = 32)
);

-- Each UUID has 122 random bits.
insert into pseudonym_key (key)
select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

grant select on pseudonym_key to app_runtime;
