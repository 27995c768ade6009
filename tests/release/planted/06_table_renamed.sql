alter table items rename to things;
