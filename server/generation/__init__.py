"""Holds what all requests that generate share: their fields, admission, the job, its choices and how they are sent."""
