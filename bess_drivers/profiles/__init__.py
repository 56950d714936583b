"""Device profiles: a device as data. `find` names a profile, `load` reads it, `Profile` is what drivers use."""

from .files import find, folders, installed, load_profile
from .model import Point, Profile, ProfileError

__all__ = ['Point', 'Profile', 'ProfileError', 'find', 'folders', 'installed', 'load_profile']
