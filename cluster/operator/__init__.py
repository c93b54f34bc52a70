"""What operators have set: settings, overrides, a freeze, a canary; checked before they touch anything."""
