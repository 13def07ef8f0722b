CREATE DATABASE prefect OWNER factsync;
