alter table items alter column currency set not null;
