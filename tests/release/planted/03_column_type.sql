alter table items alter column currency type varchar(3);
