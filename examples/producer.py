from queues import tasks

total = tasks.add(2, 3)  # returns when the broker has confirmed it
thumbnail = tasks.process_image("dogs.jpg", [320, 320])
tasks.send_email("alice@example.com", "Hello", "The burrow is dry.")
print(total.get(timeout=30), thumbnail.get(timeout=30)["path"])
