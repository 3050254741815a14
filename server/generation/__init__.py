"""All requests that generate share this: their fields, admission, the job, its choices and how they are sent."""
