"""Adds up which experts of a sparse model serve, and describes it; knows neither HTTP nor text."""
