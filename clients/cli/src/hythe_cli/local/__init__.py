"""The parts Hythe runs on this machine by itself: Postgres, NATS, a Docker engine, and the services as processes.

A server installation (`compose.yaml`) needs none of this: there, the addresses are settings.
"""
