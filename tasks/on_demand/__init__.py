"""Requests between the nights: score a loose file, rank one record, explain one record of a published night."""
