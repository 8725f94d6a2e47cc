#!/bin/sh
# Entry point of a replica: a base backup of $PRIMARY on the first start, then stream from it.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    PGPASSWORD=replica pg_basebackup --host="$PRIMARY" --username=replica --pgdata="$PGDATA" \
        --checkpoint=fast --wal-method=stream --create-slot --slot=replica --write-recovery-conf
    chmod 0700 "$PGDATA"
fi
exec postgres -c hot_standby=on
