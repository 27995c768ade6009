alter table items drop column currency;
