"""Where and when: deployments, schedules, and a server for one machine."""
