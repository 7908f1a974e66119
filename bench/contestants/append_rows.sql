-- What a plain table costs: one row for each commit. Run by pgbench, prepared.
insert into plain_events (stream, version, type, data) values (gen_random_uuid(), 1, 'deploy.step_completed', :event);
