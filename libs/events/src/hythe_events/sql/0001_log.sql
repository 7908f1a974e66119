-- The log: one table of events that only one function can add to, in one order, each hashed onto the one before.
--
-- Nobody but the owner may change a row; services may EXECUTE log.append_events and SELECT, and nothing else.
-- The function locks the head row, so positions have no gaps and their order is the order of commits: a reader's
-- cursor is one integer and nothing is ever skipped.

create schema log;

create table log.head (
    one      boolean primary key default true check (one),
    position bigint  not null,
    hash     bytea   not null
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

insert into log.head values (true, 0, sha256('hythe'));

create table log.events (
    position    bigint      primary key,
    version     integer     not null check (version > 0),
    schema      smallint    not null,
    at          timestamptz not null,
    id          uuid        not null unique,
    correlation uuid        not null,
    causation   uuid,
    stream      text collate "C" not null check (stream ~ '^[a-z]+-[^[:cntrl:]]+$'),
    type        text collate "C" not null,
    actor       text        not null check (actor !~ '[[:cntrl:]]'),
    trace       text        check (trace !~ '[[:cntrl:]]'),
    data        json        not null,
    hash        bytea       not null,
    evidence    bytea,
    unique (stream, version)
);

-- Evidence is compressed and sealed before it gets here; JSON is small. Postgres compressing either only costs time.
alter table log.events alter column evidence set storage external, alter column data set storage main;

-- Who may write what: filled by the migration from hythe_events.access.SAYS.
create table log.grants (
    role     name not null,
    category text not null,
    type     text not null,
    primary key (role, category, type)
);

-- The second line of defence, for whoever gets past the grants.
create function log.refuse() returns trigger language plpgsql as $$
begin
    raise exception 'log.% is append-only: % is refused', tg_table_name, tg_op using errcode = 'insufficient_privilege';
end $$;

create trigger append_only before update or delete or truncate on log.events
    for each statement execute function log.refuse();

-- What is hashed: the hash before, then every field that says what happened, then the evidence's own hash.
-- Declared stable, not immutable, so that Postgres inlines it. A unit separator stands between fields; none of them can hold one (JSON escapes it, the others are checked).
create function log.link(
    before bytea, pos bigint, stream text, version integer, id uuid, type text, schema smallint, microseconds bigint,
    correlation uuid, causation uuid, actor text, trace text, data text, evidence bytea
) returns bytea language sql stable parallel safe as $$
    select sha256(
        before
        || convert_to(concat_ws(e'\x1f', pos, stream, version, id, type, schema, microseconds,
               correlation, coalesce(causation::text, ''), actor, coalesce(trace, ''), data), 'UTF8')
        || coalesce(sha256(evidence), ''))
$$;

-- Appends many appends of one process in one transaction; each keeps its own version check and its own answer.
--
-- An append is a run of `lengths[a]` events of one stream, which must be at version `expected[a]` (null: any). A batch
-- names a stream at most once. The answers, one per append and in order:
--   'appended'  with the position and version of its last event, and the time;
--   'conflict'  with the version that was found;
--   'known'     the same event ids were appended before: the position and version that they got then.
create function log.append_events(
    lengths integer[], expected integer[],
    streams text[], ids uuid[], types text[], schemas smallint[], correlations uuid[], causations uuid[],
    actors text[], traces text[], data text[], evidence bytea[]
) returns table (verdict text, version integer, pos bigint, moment timestamptz, chain bytea[])
language plpgsql security definer set search_path = log, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
    allowed   text[] := array(select g.category || '/' || g.type from log.grants g where g.role = session_user);
    top       record;
    found     integer[];
    tip       bytea;
    now_at    timestamptz;
    moment_us bigint;
    firsts    text[] := '{}';
    i         integer := 0;
    v         integer;
    known     record;
    positions bigint[] := array_fill(null::bigint, array[cardinality(ids)]);
    versions  integer[] := array_fill(null::integer, array[cardinality(ids)]);
    hashes    bytea[] := array_fill(null::bytea, array[cardinality(ids)]);
    links     bytea[];
begin
    for a in 1 .. cardinality(lengths) loop
        firsts[a] := streams[i + 1];
        i := i + lengths[a];
    end loop;
    if i <> cardinality(ids) then
        raise exception 'lengths do not add up to the number of events' using errcode = 'data_exception';
    end if;

    select h.position, h.hash into top from log.head h where h.one for update;
    tip := top.hash;
    now_at := clock_timestamp();
    moment_us := (extract(epoch from now_at) * 1000000)::bigint;
    select array_agg(coalesce((select e.version from log.events e where e.stream = f.stream
                               order by e.version desc limit 1), 0) order by f.o)
      into found from unnest(firsts) with ordinality f(stream, o);

    i := 0;
    for a in 1 .. cardinality(lengths) loop
        v := found[a];
        if expected[a] is distinct from v then
            select e.position, e.version, e.at, e.stream into known from log.events e where e.id = ids[i + lengths[a]];
            if known.position is not null and known.stream = firsts[a] then
                verdict := 'known'; version := known.version; pos := known.position; moment := known.at; chain := null;
                return next;
                i := i + lengths[a];
                continue;
            elsif expected[a] is not null then
                verdict := 'conflict'; version := v; pos := null; moment := null; chain := null;
                return next;
                i := i + lengths[a];
                continue;
            end if;
        end if;
        links := '{}';
        for n in 1 .. lengths[a] loop
            i := i + 1;
            v := v + 1;
            if not (split_part(streams[i], '-', 1) || '/' || types[i] = any (allowed)) then
                raise exception '% may not write % to stream %', session_user, types[i], streams[i]
                    using errcode = 'insufficient_privilege';
            end if;
            top.position := top.position + 1;
            tip := log.link(tip, top.position, streams[i], v, ids[i], types[i], schemas[i], moment_us,
                             correlations[i], causations[i], actors[i], traces[i], data[i], evidence[i]);
            positions[i] := top.position;
            versions[i] := v;
            hashes[i] := tip;
            links[n] := tip;
        end loop;
        verdict := 'appended'; version := v; pos := top.position; moment := now_at; chain := links;
        return next;
    end loop;

    if tip <> top.hash then
        insert into log.events
        select p, u.v, s, now_at, id, cor, cau, st, ty, act, tr, d::json, h, ev
        from unnest(positions, versions, schemas, ids, correlations, causations, streams, types, actors, traces, data,
                    hashes, evidence) u(p, v, s, id, cor, cau, st, ty, act, tr, d, h, ev)
        where p is not null;
        update log.head h set position = top.position, hash = tip where h.one;
        perform pg_notify('hythe_log', top.position::text);
    end if;
end $$;

-- The same in good faith, which is quicker: every event is the one of its stream that its writer thinks, `versions`. If
-- one is not, or may not be written, that is an error of the whole batch, and log.append_events tells which and why.
create function log.append_batch(
    versions integer[], streams text[], ids uuid[], types text[], schemas smallint[], correlations uuid[],
    causations uuid[], actors text[], traces text[], data text[], evidence bytea[],
    out base bigint, out moment timestamptz, out hashes bytea[]
) language plpgsql security definer set search_path = log, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
    allowed   text[] := array(select g.category || '/' || g.type from log.grants g where g.role = session_user);
    tip       bytea;
    moment_us bigint;
begin
    select h.position, h.hash into base, tip from log.head h where h.one for update;
    moment := clock_timestamp();
    moment_us := (extract(epoch from moment) * 1000000)::bigint;
    if exists (select from unnest(streams, versions, types) with ordinality u(stream, version, type, o)
                where split_part(stream, '-', 1) || '/' || type <> all (allowed)
                   or version > 1 and stream is distinct from streams[o - 1]
                      and not exists (select from log.events e where e.stream = u.stream and e.version = u.version - 1)) then
        raise exception 'not every event is as its writer thinks' using errcode = 'unique_violation';
    end if;
    hashes := '{}';
    for o in 1 .. cardinality(ids) loop
        tip := log.link(tip, base + o, streams[o], versions[o], ids[o], types[o], schemas[o], moment_us,
                        correlations[o], causations[o], actors[o], traces[o], data[o], evidence[o]);
        hashes[o] := tip;
    end loop;
    insert into log.events
    select base + o, v, s, moment, id, cor, cau, st, ty, act, tr, d::json, h, ev
      from unnest(versions, schemas, ids, correlations, causations, streams, types, actors, traces, data, hashes, evidence)
           with ordinality u(v, s, id, cor, cau, st, ty, act, tr, d, h, ev, o);
    update log.head h set position = base + cardinality(ids), hash = tip where h.one;
    perform pg_notify('hythe_log', (base + cardinality(ids))::text);
end $$;

-- The same in good faith for one event of a stream that is at version `expected`; a wrong version is a unique_violation.
create function log.append_event(
    expected integer, stream text, id uuid, type text, schema smallint, correlation uuid, causation uuid, actor text,
    trace text, data text, evidence bytea, out pos bigint, out moment timestamptz, out chain bytea
) language plpgsql security definer set search_path = log, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_variable
begin
    moment := clock_timestamp();
    update log.head h
       set position = h.position + 1,
           hash = log.link(h.hash, h.position + 1, stream, expected + 1, id, type, schema,
                           (extract(epoch from moment) * 1000000)::bigint, correlation, causation, actor, trace, data,
                           evidence)
     where h.one and exists (select from log.grants g where g.role = session_user
                                and g.category = split_part(append_event.stream, '-', 1) and g.type = append_event.type)
    returning h.position, h.hash into pos, chain;
    if pos is null then
        raise exception '% may not write % to stream %', session_user, type, stream using errcode = 'insufficient_privilege';
    end if;
    insert into log.events
    select pos, expected + 1, schema, moment, id, correlation, causation, stream, type, actor, trace, data::json, chain, evidence
     where expected = 0 or exists (select from log.events e where e.stream = append_event.stream and e.version = expected);
    if not found then
        raise exception 'stream % is not at version %', stream, expected using errcode = 'unique_violation';
    end if;
    perform pg_notify('hythe_log', pos::text);
end $$;

-- Where the relay has got to. `epoch` grows at each take-over, so a leader that was asleep cannot move the cursor back.
create table log.relay (
    one      boolean primary key default true check (one),
    position bigint  not null default 0,
    epoch    bigint  not null default 0,
    stream_created timestamptz
);
insert into log.relay default values;

revoke all on all functions in schema log from public;
