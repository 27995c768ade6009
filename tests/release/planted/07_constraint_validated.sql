alter table items add constraint total_is_positive check (total_amount > 0);
