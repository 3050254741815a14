"""A file for each domain: it makes questions and answers of what the domain's packages hold."""
