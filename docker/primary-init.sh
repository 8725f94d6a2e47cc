#!/bin/sh
# Run once by the image of a primary: roles, replication, schema. The same on every shard.
set -eu
psql -v ON_ERROR_STOP=1 --username postgres <<'SQL'
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE ROLE pgward LOGIN PASSWORD 'pgward';
CREATE ROLE replica LOGIN REPLICATION PASSWORD 'replica';
CREATE DATABASE hospital OWNER app;
SQL
psql -v ON_ERROR_STOP=1 --username postgres --dbname hospital \
    -c 'SET ROLE app' -f /pgward/schema.sql -f /pgward/reference-rows.sql
echo 'host replication replica all scram-sha-256' >>"$PGDATA/pg_hba.conf"
