"""Whole sites with real processes on a ROS domain of their own."""

from __future__ import annotations

import os

os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))  # before rclpy
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
