"""What somebody asks for between the nights: a loose file, one record by hand, one record of a published night."""
