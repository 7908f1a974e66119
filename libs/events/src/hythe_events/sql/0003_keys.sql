-- Data keys: what secrets are sealed with, one in use per service and owner, each wrapped by the master key.
--
-- The master key is never in the database, so a copy of the database opens nothing. A service sees its own keys and
-- nobody else's: every function asks whose session it is. Forgetting an owner empties `wrapped` and keeps the row, so
-- that "shredded on purpose" and "never heard of" can be told apart for ever.

create table log.data_keys (
    key_id      uuid        primary key,
    service     name        not null,
    owner       text        not null check (owner <> ''),
    master_id   text        not null,
    wrapped     bytea,
    retired     boolean     not null default false,
    made_at     timestamptz not null default clock_timestamp(),
    shredded_at timestamptz,
    check ((wrapped is null) = (shredded_at is not null))
);

create unique index data_keys_in_use on log.data_keys (service, owner) where wrapped is not null and not retired;
create index data_keys_by_master on log.data_keys (master_id) where wrapped is not null;

-- Whether the session may see a service's keys: the service itself, and whoever owns the log (to rotate all at once).
create function log.sees_keys_of(service name) returns boolean
language sql stable security definer set search_path = log, pg_temp as $$
    select service = session_user or pg_has_role(session_user, current_user, 'usage')
$$;

-- The key that the session's service seals an owner's secrets with now; no row when there is none.
create function log.data_key_in_use(of_owner text)
returns table (key_id uuid, owner text, master_id text, wrapped bytea)
language sql stable security definer set search_path = log, pg_temp as $$
    select k.key_id, k.owner, k.master_id, k.wrapped from log.data_keys k
    where k.service = session_user and k.owner = of_owner and k.wrapped is not null and not k.retired
$$;

-- One key by its id. `wrapped` is null when the key was shredded.
create function log.data_key(wanted uuid)
returns table (key_id uuid, owner text, master_id text, wrapped bytea)
language sql stable security definer set search_path = log, pg_temp as $$
    select k.key_id, k.owner, k.master_id, k.wrapped from log.data_keys k
    where k.key_id = wanted and log.sees_keys_of(k.service)
$$;

-- Offers a new key for an owner, in place of `replaces` if that is given, and answers with the one that holds: of two
-- processes that offer one at the same time, both get the first.
create function log.keep_data_key(new_id uuid, of_owner text, new_master_id text, new_wrapped bytea, replaces uuid)
returns table (key_id uuid, owner text, master_id text, wrapped bytea)
language plpgsql security definer set search_path = log, pg_temp as $$
#variable_conflict use_column
begin
    update log.data_keys k set retired = true where k.key_id = replaces and k.service = session_user;
    insert into log.data_keys (key_id, service, owner, master_id, wrapped)
    values (new_id, session_user, of_owner, new_master_id, new_wrapped)
    on conflict (service, owner) where wrapped is not null and not retired do nothing;
    return query select * from log.data_key_in_use(of_owner);
end $$;

-- Forgets every key of an owner for good; how many there were. What was sealed with them can never be opened again.
create function log.shred_data_keys(of_owner text) returns bigint
language sql volatile security definer set search_path = log, pg_temp as $$
    with gone as (
        update log.data_keys k set wrapped = null, shredded_at = clock_timestamp()
        where k.owner = of_owner and k.wrapped is not null and log.sees_keys_of(k.service)
        returning 1
    )
    select count(*) from gone
$$;

-- Which master keys the session's keys are wrapped with, and how many with each.
create function log.data_key_masters() returns table (master_id text, keys bigint)
language sql stable security definer set search_path = log, pg_temp as $$
    select k.master_id, count(*) from log.data_keys k
    where k.wrapped is not null and log.sees_keys_of(k.service)
    group by k.master_id
$$;

-- Some keys that another master key than this one wraps: the work that is left of a rotation.
create function log.data_keys_to_rewrap(new_master_id text, at_most integer)
returns table (key_id uuid, owner text, master_id text, wrapped bytea)
language sql stable security definer set search_path = log, pg_temp as $$
    select k.key_id, k.owner, k.master_id, k.wrapped from log.data_keys k
    where k.wrapped is not null and k.master_id <> new_master_id and log.sees_keys_of(k.service)
    order by k.key_id limit at_most
$$;

-- Puts a key's new wrapping in place of the old one; false when it was shredded or wrapped anew by somebody else.
create function log.rewrap_data_key(wanted uuid, old_master_id text, new_master_id text, new_wrapped bytea)
returns boolean
language sql volatile security definer set search_path = log, pg_temp as $$
    with done as (
        update log.data_keys k set wrapped = new_wrapped, master_id = new_master_id
        where k.key_id = wanted and k.master_id = old_master_id and k.wrapped is not null
          and log.sees_keys_of(k.service)
        returning 1
    )
    select exists (select 1 from done)
$$;

do $$
declare
    callable regprocedure;
begin
    foreach callable in array array[
        'log.sees_keys_of(name)', 'log.data_key_in_use(text)', 'log.data_key(uuid)',
        'log.keep_data_key(uuid, text, text, bytea, uuid)', 'log.shred_data_keys(text)', 'log.data_key_masters()',
        'log.data_keys_to_rewrap(text, integer)', 'log.rewrap_data_key(uuid, text, text, bytea)'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public', callable);
        execute format('grant execute on function %s to hythe_webhooks, hythe_git, hythe_build, hythe_deploy', callable);
    end loop;
end $$;
