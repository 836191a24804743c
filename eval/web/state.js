// What is selected on the page: one store, which calls back whoever depends on a key that changes.

export function createState(values) {
  const subscriptions = [];
  return Object.assign(values, {
    set(changes) {
      const changed = Object.keys(changes).filter((key) => values[key] !== changes[key]);
      Object.assign(values, changes);
      for (const [keys, call] of subscriptions) {
        if (keys.some((key) => changed.includes(key))) call();
      }
    },
    // Call now, and after each change of one of the keys.
    subscribe(keys, call) {
      subscriptions.push([keys, call]);
      call();
    },
  });
}
