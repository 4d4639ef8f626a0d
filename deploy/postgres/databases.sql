-- One server, two databases: POSTGRES_DB is ours, this one is for Label Studio.
CREATE DATABASE label_studio;
