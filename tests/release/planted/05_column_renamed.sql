alter table items rename column currency to iso_currency;
