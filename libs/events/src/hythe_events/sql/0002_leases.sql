-- Who may touch a stack: one lease per stack, with a fencing token that only grows, told by the database's clock.

create sequence log.fences;

create table log.leases (
    stack      text collate "C" primary key,
    fence      bigint      not null default 0,
    deployment uuid,
    asked      bigint      not null default 0,   -- the newest request that ever held it: an older one comes too late
    kept       boolean     not null default false,
    expires_at timestamptz not null default '-infinity',
    child_host text,                             -- the program that changes the stack for the holder, if one runs
    child_pid  integer,
    child_started bigint
);

-- Takes the lease when nobody holds it. The verdicts:
--   'granted'     with the fence, and the child that the last holder may have left behind;
--   'held'        by whom;
--   'superseded'  a later request held it before;
--   'kept'        it is kept since a restore failed, and `force` was not given.
create function log.take_lease(
    wanted text, deploying uuid, asked_at bigint, seconds double precision, force boolean
) returns table (verdict text, fence bigint, holder uuid, newest bigint, child_host text, child_pid integer, child_started bigint)
language plpgsql security definer set search_path = log, pg_temp as $$
declare
    l log.leases;
begin
    insert into log.leases (stack) values (wanted) on conflict do nothing;
    select * into l from log.leases s where s.stack = wanted for update;
    holder := l.deployment; newest := l.asked; fence := l.fence;
    if l.asked > asked_at then
        verdict := 'superseded';
    elsif l.kept and not force then
        verdict := 'kept';
    elsif not l.kept and l.expires_at > clock_timestamp() then
        verdict := 'held';
    else
        verdict := 'granted';
        child_host := l.child_host; child_pid := l.child_pid; child_started := l.child_started;
        fence := nextval('log.fences');
        update log.leases s
           set fence = take_lease.fence, deployment = deploying, asked = asked_at, kept = false,
               expires_at = clock_timestamp() + make_interval(secs => seconds),
               child_host = null, child_pid = null, child_started = null
         where s.stack = wanted;
    end if;
    return next;
end $$;

-- Holds the lease for `seconds` more; false when it was lost.
create function log.renew_lease(held text, token bigint, seconds double precision) returns boolean
language sql security definer set search_path = log, pg_temp as $$
    with renewed as (
        update log.leases s set expires_at = clock_timestamp() + make_interval(secs => seconds)
         where s.stack = held and s.fence = token and s.expires_at > clock_timestamp() returning 1)
    select exists (select from renewed)
$$;

-- Whether the lease is held, and will be for `seconds`; asked before each call that changes something.
create function log.check_lease(held text, token bigint, seconds double precision) returns boolean
language sql security definer set search_path = log, pg_temp as $$
    select exists (select from log.leases s where s.stack = held and s.fence = token
                   and s.expires_at > clock_timestamp() + make_interval(secs => seconds))
$$;

-- Notes the program that now changes the stack, so that the next holder can end it; false when the lease was lost.
create function log.note_child(held text, token bigint, host text, pid integer, started bigint) returns boolean
language sql security definer set search_path = log, pg_temp as $$
    with noted as (
        update log.leases s set child_host = host, child_pid = pid, child_started = started
         where s.stack = held and s.fence = token and s.expires_at > clock_timestamp() returning 1)
    select exists (select from noted)
$$;

-- Gives the lease back, or keeps it for good (`keep`), so that nothing is deployed before somebody has looked.
create function log.release_lease(held text, token bigint, keep boolean) returns void
language sql security definer set search_path = log, pg_temp as $$
    update log.leases s set expires_at = '-infinity', kept = keep, child_host = null, child_pid = null, child_started = null
     where s.stack = held and s.fence = token
$$;

revoke all on function log.take_lease, log.renew_lease, log.check_lease, log.note_child, log.release_lease from public;
grant execute on function log.take_lease, log.renew_lease, log.check_lease, log.note_child, log.release_lease to hythe_deploy;
