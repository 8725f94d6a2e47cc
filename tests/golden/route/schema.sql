-- Beside config/schema.sql: what the guide's schema does not have.
CREATE TABLE audit_log (id bigint, entry text);
CREATE TABLE notes (hospital_id text, body text);
CREATE VIEW region_names AS SELECT name FROM regions;
CREATE VIEW open_visits AS SELECT * FROM visits WHERE status = 'open';
CREATE VIEW entries AS SELECT entry FROM audit_log;
CREATE FUNCTION risk(bigint) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION age_group(date) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT 1';
