-- The date of the built-in price list that the database has. NULL: the list of an earlier release, or none.
SET LOCAL lock_timeout = '5s';

ALTER TABLE deployment ADD COLUMN built_in_list_date date;
