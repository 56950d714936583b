"""Recorder and dashboard."""
