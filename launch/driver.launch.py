"""One driver (or any other node) of a site file, alone, e.g. to look at a device before the site runs.

    ros2 launch bess driver.launch.py site:=home_demo node:=meter sim:=true
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

ARGUMENTS = {
    'site': (None, 'site file, or name of an installed one, e.g. home_demo'),
    'node': (None, 'the node of the site file'),
    'sim': ('false', 'start the simulated devices of the site file: true or false'),
}


def generate_launch_description() -> LaunchDescription:
    """The site with this node only; the other arguments are those of site.launch.py."""
    site = PythonLaunchDescriptionSource(str(Path(__file__).with_name('site.launch.py')))
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in ARGUMENTS.items()),
        IncludeLaunchDescription(site, launch_arguments=[(name, LaunchConfiguration(name)) for name in ARGUMENTS]),
    ])
