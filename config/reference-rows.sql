-- Rows of the reference tables, the same on every shard. Safe to run again.

INSERT INTO regions (id, name) VALUES
    (1, 'north-america'), (2, 'europe'), (3, 'asia-pacific'),
    (4, 'middle-east-africa'), (5, 'latin-america')
ON CONFLICT (id) DO UPDATE SET name = excluded.name;

INSERT INTO roles (id, name) VALUES
    (1, 'physician'), (2, 'nurse'), (3, 'registrar'), (4, 'administrator')
ON CONFLICT (id) DO UPDATE SET name = excluded.name;
