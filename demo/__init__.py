"""The demo: a small fleet of real disks, saved, destroyed, restored, and proved equal.

__main__   what is done, in its order
machines   what is on the disks: files of this Debian system, an application, a web site
databases  SQLite and PostgreSQL, with real rows read by the real programs
guests     reading and changing files inside of the disks
proof      what a fleet is at one moment, and whether it is that again
terminal   commands as a person would type them, and the report
"""
