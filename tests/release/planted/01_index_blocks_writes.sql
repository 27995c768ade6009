create index items_currency on items (currency);
