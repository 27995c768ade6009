-- Key of the pseudonyms. Failed logins of unknown accounts often contain a mistyped e-mail address, or a password in
-- the wrong field. The audit log and `login_attempts` therefore store a keyed hash instead. Attempts for the same
-- account can still be joined, and a copy of either table alone does not reveal the input.
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
