alter table items add column channel text not null;
