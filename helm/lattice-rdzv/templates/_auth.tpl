{{/*
With TLS, etcd also listens unencrypted on the pod's loopback interface, because its JSON gateway rejects requests with a certificate that has
a common name when authentication is on.
*/}}
{{- define "lattice.loopbackPort" -}}
{{- ternary .Values.auth.loopbackPort .Values.clientService.internalPort .Values.tls.client.enabled -}}
{{- end -}}

{{/* The container that enables authentication. Until then, the pod is not ready, and therefore not in the client Service. */}}

{{- define "lattice.authContainer" -}}
- name: auth
  image: {{ .Values.auth.image | quote }}
  imagePullPolicy: {{ .Values.imagePullPolicy }}
  command: ["python3", "-u", "-B", "/opt/lattice-rdzv/auth.py"]
  env:
    - name: AUTH_ETCD
      value: {{ printf "127.0.0.1:%d" (int (include "lattice.loopbackPort" .)) | quote }}
    - name: AUTH_PORT
      value: {{ .Values.auth.port | quote }}
    - name: AUTH_USERS
      value: /opt/lattice-rdzv/users.json
    - name: AUTH_SECRETS
      value: /etc/lattice-rdzv/auth
  ports:
    - name: auth
      containerPort: {{ .Values.auth.port }}
  readinessProbe:
    httpGet:
      path: /ready
      port: auth
    periodSeconds: {{ int64 .Values.probes.readiness.periodSeconds }}
    timeoutSeconds: {{ int64 .Values.probes.readiness.timeoutSeconds }}
    failureThreshold: {{ int64 .Values.probes.readiness.failureThreshold }}
  livenessProbe:
    httpGet:
      path: /alive
      port: auth
    periodSeconds: {{ int64 .Values.probes.liveness.periodSeconds }}
    timeoutSeconds: {{ int64 .Values.probes.liveness.timeoutSeconds }}
    failureThreshold: {{ int64 .Values.probes.liveness.failureThreshold }}
  {{- with .Values.auth.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "lattice.containerSecurityContext" . | nindent 2 }}
  volumeMounts:
    - name: auth
      mountPath: /etc/lattice-rdzv/auth
      readOnly: true
    - name: auth-script
      mountPath: /opt/lattice-rdzv
      readOnly: true
{{- end -}}
