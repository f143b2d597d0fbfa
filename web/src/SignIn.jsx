// The control beside the logo: the signed-in user, and the dialog to sign in or to create an account.
import { useEffect, useRef, useState, useSyncExternalStore } from 'react';
import { Field } from './Field.jsx';
import { signIn, signOut, snapshot, subscribe } from './session.js';

export function SignIn() {
  const { viewer, busy, notice } = useSyncExternalStore(subscribe, snapshot);
  const [creating, setCreating] = useState(false);
  // Messages by field; those of no field are in `form`.
  const [errors, setErrors] = useState({});
  const dialog = useRef(null);
  const form = useRef(null);

  function focusFirst(selector) {
    if (dialog.current.open) {
      form.current.querySelector(selector)?.focus();
    }
  }
  useEffect(() => focusFirst('input'), [creating]);
  useEffect(() => focusFirst('[aria-invalid=true]'), [errors]);

  function show() {
    setErrors({});
    dialog.current.showModal();
    focusFirst('input');
  }

  function change() {
    setErrors({});
    setCreating(!creating);
  }

  async function submit(event) {
    event.preventDefault();
    if (busy) {
      return;
    }
    setErrors({});
    try {
      await signIn(creating ? 'register' : 'login', Object.fromEntries(new FormData(form.current)));
      form.current.reset();
      dialog.current.close();
    } catch ({ message, fields }) {
      const known = Object.keys(fields ?? {}).some((name) => form.current.elements[name]);
      setErrors(known ? fields : { form: message });
    }
  }

  const details = viewer && [viewer.email, viewer.role.toLowerCase()].filter(Boolean).join(', ');
  const title = creating ? 'Create an account' : 'Sign in';
  // One element for both actions, so that it keeps the focus.
  return (
    <div className="account">
      <span role="status" title={viewer ? details : notice}>
        {viewer ? (
          <>
            <span className="unseen">Signed in as </span>
            {viewer.name}
          </>
        ) : (
          notice
        )}
      </span>
      <button
        type="button"
        className="graphiql-button"
        aria-haspopup={viewer ? undefined : 'dialog'}
        aria-disabled={Boolean(busy)}
        onClick={() => busy || (viewer ? signOut() : show())}
      >
        {busy || (viewer ? 'Sign out' : 'Sign in')}
      </button>
      <dialog ref={dialog} aria-labelledby="sign-in-title" closedby="any">
        <form ref={form} aria-busy={Boolean(busy)} onSubmit={submit}>
          <h2 id="sign-in-title">{title}</h2>
          {creating && <Field name="name" label="Name" required autoComplete="name" error={errors.name} />}
          <Field name="email" type="email" label="E-mail" required autoComplete="username" error={errors.email} />
          <Field
            name="password"
            type="password"
            label="Password"
            required
            autoComplete={creating ? 'new-password' : 'current-password'}
            error={errors.password}
          />
          <p role="alert" className={errors.form && 'error'}>
            {errors.form}
          </p>
          <button type="submit" className="graphiql-button primary" aria-disabled={Boolean(busy)}>
            {busy || title}
          </button>
          <p>
            {creating ? 'You have an account?' : 'No account yet?'}{' '}
            <button type="button" className="link" onClick={change}>
              {creating ? 'Sign in' : 'Create one'}
            </button>
          </p>
          <button
            type="button"
            className="graphiql-un-styled close"
            aria-label="Close"
            onClick={() => dialog.current.close()}
          >
            ×
          </button>
        </form>
      </dialog>
    </div>
  );
}
