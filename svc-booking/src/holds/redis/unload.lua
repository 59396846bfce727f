-- A concert's sold seats are in doubt: whoever asks next reads them from the database.
redis.call('DEL', meta)
disturb_loading()
