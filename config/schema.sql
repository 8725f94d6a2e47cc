-- The schema of the hospital system, the same on every shard.
--
-- Tables with hospital_id hold the rows of the hospitals that live on the shard; regions and roles
-- are reference tables, the same everywhere. Primary keys lead with hospital_id, so that one
-- hospital's rows are one range and can move. Load it on each shard in a shard-addressed session:
--   psql "host=... dbname=hospital options='-c pgward.shard=0'" -f config/schema.sql

CREATE TABLE regions (
    id   integer PRIMARY KEY,
    name text NOT NULL UNIQUE
);

CREATE TABLE roles (
    id   integer PRIMARY KEY,
    name text NOT NULL UNIQUE
);

CREATE TABLE hospitals (
    id        uuid PRIMARY KEY,
    region_id integer NOT NULL REFERENCES regions (id),
    code      text NOT NULL,
    name      text NOT NULL,
    is_active boolean NOT NULL DEFAULT true
);
CREATE INDEX hospitals_region_id ON hospitals (region_id);
CREATE INDEX hospitals_code ON hospitals (code);
CREATE INDEX hospitals_is_active ON hospitals (is_active);

CREATE TABLE users (
    hospital_id uuid NOT NULL REFERENCES hospitals (id),
    id          bigint NOT NULL,
    email       text NOT NULL,
    role_id     integer NOT NULL REFERENCES roles (id),
    PRIMARY KEY (hospital_id, id)
);
CREATE INDEX users_hospital_id ON users (hospital_id);
CREATE INDEX users_email ON users (email);
CREATE INDEX users_role_id ON users (role_id);
CREATE INDEX users_hospital_id_role_id ON users (hospital_id, role_id);

CREATE TABLE patients (
    hospital_id uuid NOT NULL REFERENCES hospitals (id),
    id          bigint NOT NULL,
    mrn         text NOT NULL,
    phone       text,
    email       text,
    name        text NOT NULL,
    PRIMARY KEY (hospital_id, id)
);
CREATE INDEX patients_hospital_id ON patients (hospital_id);
CREATE INDEX patients_mrn ON patients (mrn);
CREATE INDEX patients_phone ON patients (phone);
CREATE INDEX patients_email ON patients (email);

CREATE TABLE visits (
    hospital_id    uuid NOT NULL,
    id             bigint NOT NULL,
    patient_id     bigint NOT NULL,
    admission_date date NOT NULL,
    status         text NOT NULL,
    PRIMARY KEY (hospital_id, id),
    FOREIGN KEY (hospital_id, patient_id) REFERENCES patients (hospital_id, id)
);
CREATE INDEX visits_hospital_id ON visits (hospital_id);
CREATE INDEX visits_patient_id ON visits (patient_id);
CREATE INDEX visits_admission_date ON visits (admission_date);
CREATE INDEX visits_hospital_id_status ON visits (hospital_id, status);
