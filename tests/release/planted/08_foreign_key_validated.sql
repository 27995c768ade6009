alter table items add constraint customer_exists foreign key (customer_id) references users (id);
